"""Every page a person opens: one look, self-contained, made from plain columns."""
