import experiments  # noqa: F401  says what to do in a Python without the packages
