"""The built-in evaluation: which search settings find a function from its description."""
