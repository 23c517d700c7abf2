"""The commands, and what each does in one line; nothing is imported."""

LIGHTNING = {
    "fit": "attack one client after the other, with progress and TensorBoard; or train a prior",
    "validate": "score the reconstruction that a checkpoint of fit holds",
    "test": "attack many clients, spread over the devices; --resume goes on with a stopped run",
    "predict": "reconstruct from captured updates, for which nobody has the truth",
}
"""Lightning's commands: what each does, in one line."""

LIGHT = {
    "audit": "audit what a real federation sent: a verdict for every client of a capture",
    "lint": "tell what a configuration of Flower, Opacus or NVIDIA FLARE really guarantees",
    "detect": "tell whether a model that a server sent is made to steal images",
    "import": "add what a client was sent and sent back, from files, to a capture",
    "sweep": "run every combination of the values that one YAML file lists",
    "recommend": "find the weakest defense of a list that holds, and what it costs in accuracy",
    "estimate": "tell what a linearised attacker would get of a configuration's clients",
    "compare": "put several runs side by side on one page, or in a table for a paper",
    "report": "build the report.html of a run, a sweep or an audit anew",
    "figure": "draw a run, several runs or a sweep for a paper, as PDF and SVG with a caption",
    "configs": "list the configurations that ship: time, memory, expected figure, paper, table",
    "attacks": "list the attacks, with their citations",
    "defenses": "list the defenses, with their citations",
    "data": "list the data sets, with their citations",
    "targets": "list the networks that can be attacked",
    "clients": "list what a client may do between a batch and its update",
    "priors": "list the penalties that an attack can put on images",
    "refiners": "list the networks that can improve a reconstruction",
    "papers": "list what papers claim, beside what was reached here",
    "doctor": "tell what is installed, and which devices, data and checkpoints are found",
    "completion": "print the script that completes commands and options at the Tab key",
}
"""The other commands."""
TRAINED = ("sweep", "recommend")
"""Those that run a Trainer all the same, and parse their options themselves."""
LISTS = {
    "attacks": ("Attack",),
    "defenses": ("Defense",),
    "data": ("AuditDataModule",),
    "targets": ("Target",),
    "clients": ("Client",),
    "priors": ("Prior", "ActivationPrior"),
    "refiners": ("Refiner",),
}
"""Those that list the classes of the package of that name, and what these are below."""
