"""The commands of `moderation-trainer`, a module for each group of them: arguments and settings in, one call each.

Nothing here is imported by other rooms. What needs torch or scikit-learn is imported by the command that needs it, so
that asking for help takes no seconds.
"""
