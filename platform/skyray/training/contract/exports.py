"""Contract of the graph a family gives away: what it takes, and that it answers as `predict`."""

from __future__ import annotations

from skyray.families.base import NotExportable
from skyray.training.contract.answers import Answering
from skyray.training.contract.case import survives


def check_export(answering: Answering) -> None:
    """The graph takes rows of `transform` and answers as `predict`; or there is a reason why not.

    Run in torch: what onnxruntime makes of it is checked when a bundle is exported.
    """
    case, family = answering.case, answering.family
    with case.checking("plain"):
        model = family.plain(answering.trained)
        rows = case.inputs(False, answering.new)
        expected = family.predict(model, rows, *answering.kept)
        case.require(not model.training, "a model in evaluation mode", "one in training")
    with case.checking("export"):
        try:
            export = family.export(model, *answering.kept)
        except NotExportable as error:
            case.require(bool(str(error)), "a reason", "none")
            return
        ports = (*export.inputs, *export.outputs)
        names = [port.name for port in ports]
        case.require(len(set(names)) == len(names), "each input and output once", names)
        case.require(all(port.description for port in ports), "a description of each", names)
        case.require(len(export.inputs) > 0 and len(export.outputs) > 0, "inputs, outputs", names)
        case.require(survives([vars(port) for port in ports]), "values that JSON keeps", ports)
        export.compare(export.run(rows), expected)
        for row in (0, len(answering.new) - 1):
            alone = {name: values[[row]] for name, values in rows.items()}
            export.compare(
                export.run(alone), {name: values[[row]] for name, values in expected.items()}
            )
