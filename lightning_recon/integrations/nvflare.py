"""NVIDIA FLARE (``pip install nvflare``): a server's filter that captures what clients send.

The filter stands in both chains of the server: before task data go out, and before a result is
aggregated.  It changes nothing.  In ``config_fed_server.json``::

    "task_data_filters": [{"tasks": ["train"], "filters": [
        {"path": "lightning_recon.integrations.nvflare.CaptureFilter",
         "args": {"folder": "/captures/job"}}]}],
    "task_result_filters": [the same]

Filters of the clients have done their work when a result arrives: what is captured is what a
server of that federation sees.
"""

# mypy: disallow-subclassing-any=False

from typing import Any

from lightning_recon.captures import CaptureWriter, Kind
from lightning_recon.errors import InputError

try:
    from nvflare.apis.dxo import DXO, DataKind, MetaKey
    from nvflare.apis.dxo_filter import DXOFilter
    from nvflare.apis.filter import FilterChainType, FilterContextKey
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable
except ImportError as error:
    raise ImportError(
        f"lightning_recon.integrations.nvflare needs NVIDIA FLARE: pip install nvflare ({error})"
    ) from error

_KINDS: dict[str, Kind] = {DataKind.WEIGHTS: "weights", DataKind.WEIGHT_DIFF: "delta"}
"""FLARE's kinds of data, for a model of FLModel's ``FULL`` and ``DIFF``."""
_ROUND = "current_round"
_sent: dict[tuple[str, str], tuple[str, int]] = {}
"""By capture and client: the payload that it was sent last, and the round; both chains share it."""


class CaptureFilter(DXOFilter):
    """Records weights and differences of weights; metrics and other data pass unseen.

    Names that a client leaves out, as ``ExcludeVars`` does, are recorded as missing.  What cannot
    be recorded, such as encrypted weights, is logged, and the federation goes on.

    Args:
        folder: of the capture; is made if it is missing.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(supported_data_kinds=list(_KINDS), data_kinds_to_filter=list(_KINDS))
        self.folder = folder

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> None:
        """Record a payload or a reply; nothing is changed.

        Args:
            dxo: weights or their difference, by name.
            shareable: that it belongs to.
            fl_ctx: of the task, with the client as its peer.
        """
        try:
            self._record(dxo, shareable, fl_ctx)
        except (InputError, OSError) as error:
            self.log_error(fl_ctx, f"not captured: {error}")

    def _record(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> None:
        if processed := dxo.get_meta_prop(MetaKey.PROCESSED_ALGORITHM):
            raise InputError(f"the numbers are not plain, but processed by {processed}")
        peer = fl_ctx.get_peer_context()
        client = (peer.get_identity_name() if peer is not None else "") or "unknown"
        number = shareable.get_header(_ROUND, fl_ctx.get_prop(_ROUND))
        writer = CaptureWriter(self.folder, "nvflare")
        key = (str(writer.folder), client)
        if self.get_prop(FilterContextKey.CHAIN_TYPE) == FilterChainType.TASK_DATA_CHAIN:
            _sent[key] = (writer.add_payload(dxo.data), int(number or 0))
            return
        payload, sent_in = _sent.get(key, (None, 0))
        writer.add_reply(
            sent_in if number is None else int(number),
            client,
            dxo.data,
            _KINDS[dxo.data_kind],
            payload,
            **_facts(dxo),
        )


def _facts(dxo: DXO) -> dict[str, Any]:
    """Return what a client tells of its training, as far as it tells."""
    facts: dict[str, Any] = {}
    steps = dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND)
    if isinstance(steps, int) and steps > 0:
        facts["steps"] = steps
    if metrics := dxo.get_meta_prop(MetaKey.INITIAL_METRICS):
        told = {str(name): value for name, value in metrics.items()}
        facts["metrics"] = {n: v for n, v in told.items() if isinstance(v, int | float | str)}
    if passed := dxo.get_filter_history():
        facts["mods"] = [{"name": str(name)} for name in passed]
    return facts
