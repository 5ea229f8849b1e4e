"""A trial's own calls to models: asking for leave, counting what they use, naming their faults."""
