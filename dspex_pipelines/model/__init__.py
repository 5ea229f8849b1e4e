"""Pure values: the words of the domain. Nothing here does I/O or knows a framework."""
