"""A study: every strategy of a grid over paired runs, each an ordinary run in a process of its own, and its verdict."""
