"""The operations of an address space, as `async def` functions over atomic steps.

Each reads like the kernel function that it stands for. All engines run these same functions.
"""
