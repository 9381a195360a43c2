"""For the site: signatures of attacks with the keywords of `**options: Unpack[...]`, and the defaults of `Attack`."""

from __future__ import annotations

from typing import Any

import griffe


class AttackOptions(griffe.Extension):
    """What `iaat_fast.attacks.options.full_signature` does at run time, on the sources."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        attacks = pkg["attacks"]
        options, shared = attacks["options"], attacks["attack.Attack.__init__"].parameters
        for module in attacks.modules.values():
            for attack in module.classes.values():
                init = attack.members.get("__init__")
                if init is None or init.is_alias or not init.parameters:
                    continue
                own = list(init.parameters)
                if own[-1].kind is griffe.ParameterKind.var_keyword and "Unpack[" in str(
                    own[-1].annotation
                ):
                    name = str(own.pop().annotation).removeprefix("Unpack[").rstrip("]")
                    every = [shared[keyword] for keyword in options[name].attributes]
                    init.parameters = griffe.Parameters(*own, *every)
