"""``disttensor-run``: start a training on several processes, on one machine, on several hosts, or in a Slurm job.

Standard library only, and nothing of `disttensor`: the launcher must start in milliseconds, and work out what is wrong
even where numpy or MPI are missing.

`cli` reads the command line, `plan` turns it into a command and an environment, `mpi` finds the environment's mpirun,
`slurm` reads the allocation. `supervisor` runs the program as often as allowed, `attempt` once, `rank` is what runs
beside each rank, `console` prints and logs. `setup_environment` prepares an environment for plain ``mpirun``.
"""
