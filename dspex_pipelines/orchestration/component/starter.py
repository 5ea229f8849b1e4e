"""A ten-line program, its metric and its data: what a first evaluation begins with."""

PROGRAM = '''"""The program under evaluation, and the metric that judges it."""


def shorten(text, words, ellipsis):
    """Return the first words of a text."""
    found = text.split()
    short = " ".join(found[:words])
    return short + " ..." if ellipsis and len(found) > words else short


def same(example, outputs):
    """Return whether the answer is the expected one."""
    return outputs == example.labels["expected"]
'''

DATA = """id,text,expected
1,The quick brown fox jumps,The quick brown ...
2,Hello world,Hello world
3,One two three four five six,One two three ...
4,A very long sentence about nothing,A very long ...
5,Short,Short
"""
