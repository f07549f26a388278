"""Metadata of the executors: where cells run. Imports neither torch nor ray nor submitit."""

from harness.registry import ComponentInfo

LOCAL = ComponentInfo("local", "Worker processes of this machine.", "harness.execute:Local")
RAY = ComponentInfo(
    "ray",
    "Tasks on a Ray cluster, or on one that is started here; ray(address=...,cpus=1,gpus=0.25).",
    "harness.ray_executor:Ray",
    "Moritz et al. 2018, arXiv:1712.05889",
)
SLURM = ComponentInfo(
    "slurm",
    "Job arrays on a Slurm cluster that shares the results folder; slurm(partition=gpu,time=120,gpus=1,cells=20).",
    "harness.slurm_executor:Slurm",
    "Yoo, Jette, Grondona 2003, JSSPP; submitit (Meta), github.com/facebookincubator/submitit",
)
