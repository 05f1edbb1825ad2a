"""A model in other forms: converted in toolchains, verified, compared, run and timed the same way."""
