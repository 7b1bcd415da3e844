"""Any other text-to-image pipeline: nothing is written about it, everything is found out from its own call.

`predict` runs the published call itself, one picture at a time, with recorded text conditions and up to its
scheduler; so it is that call by construction: packing, time, sign and all. What could break this (conditions
that depend on the size, guidance that cannot be switched off, another decoding) is checked before any work,
and a pipeline that fails a check is refused with the reason.
"""
