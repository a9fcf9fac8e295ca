"""One module per op. Left empty: a name imported here would hide the submodule of the same name."""
