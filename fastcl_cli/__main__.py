"""``python -m fastcl_cli`` is ``fastcl``."""

from fastcl_cli.cli.main import main

main()
