"""The built-in evaluation: which search configuration finds a function from its description?"""
