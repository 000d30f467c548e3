"""Other real kernels: boot one in QEMU, run the teardown experiment inside, read its tracepoints.

kernels      a vmlinuz by path, or Debian's by apt's own client into the cache
build        the probe (probe.c and the files it includes), compiled once into the cache
initramfs    the guest's root: the probe as init
qemu         one guest: accelerator, clock, limits in time, nothing left running
capsule      what comes out of it
experiment   a plan's runs as rows of a table
recording    the guest's trace as an ordinary recording
graph        its function_graph in the layout of the RFC's own trace
"""
