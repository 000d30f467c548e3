"""Finished results as text, pages, pictures and files."""
