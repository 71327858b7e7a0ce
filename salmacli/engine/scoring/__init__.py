"""From predictions on disk to numbers one can compare.

What is read: ``predictions`` (``own_predictions``, ``foreign_predictions``). What goes wrong: ``problems``.
By which rules: ``protocols``, ``averages``. Expressions: ``evaluator``, ``counting``, ``tables``. Objects of label
pictures: ``label_folders``, ``label_counts``, ``matching``; and of Ref-DAVIS17's annotators: ``annotators``,
``annotator_counts``, ``merging``. What is written: ``evaluation``, ``submission``. Across thresholds and runs:
``sweep``, ``comparison``.
"""
