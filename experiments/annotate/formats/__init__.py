"""A file for each annotation tool: `write(request, out)` and `read(request, place)`, as ../handoff.py explains them."""
