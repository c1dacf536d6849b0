"""Flags for the owner of a server; the WebUI reads this file before anything else."""


def preload(parser):
    """Adds the flags to the WebUI's own."""
    group = parser.add_argument_group("ZS²")
    group.add_argument(
        "--zs2-source-dir",
        action="append",
        metavar="DIR",
        help="a folder whose videos and images requests may name as a source, beside the WebUI's own; may be repeated",
    )
    group.add_argument("--zs2-max-frames", type=int, metavar="N", help="the most frames that a clip may have")
    group.add_argument(
        "--zs2-max-source-pixels", type=int, metavar="N", help="the most pixels that a frame of a source may have"
    )
