"""ALHVR for nnU-Net: lets nnU-Net's look-up by name find its trainers and planner.

It serves nnUNet_extTrainer as it is; `alhvr link` copies it into nnU-Net, `alhvr unlink` removes the copies.
"""


def __getattr__(name):
    # nnU-Net asks every module in its folders for every class: its own names must cost nothing
    if name.startswith("ALHVRPlanner") or ("Trainer" in name and not name.startswith("nnUNet")):
        try:
            from alhvr_trainer.commands.link import class_named
        except ModuleNotFoundError as error:
            if error.name != "alhvr_trainer":  # uninstalled while linked: nnU-Net goes on without us
                raise
        else:
            return class_named(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
