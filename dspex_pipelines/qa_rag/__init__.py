"""The built-in evaluation of a language-model program: retrieval over `stdlib_search`, then an answer."""
