"""The stages of `fewstep train`: a recipe from pictures to a report. `train.py` runs them in their order."""
