"""The subcommands of ``disttensor``, one a module; `disttensor.cli` says what a module must have."""
