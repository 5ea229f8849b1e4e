"""Breaks a running evaluation in every way that is known, then checks that nothing of it shows in the results."""
