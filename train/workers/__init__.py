"""Shards made by other processes than the one that drives a job: on this machine, by Slurm, or on a Ray cluster."""
