"""Experiments behind the numbers of the book. Each module that can be run says how."""
