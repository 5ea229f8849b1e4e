"""`dspex doctor`: looks at what an evaluation needs, changes nothing, and says what to do."""
