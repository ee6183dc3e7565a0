"""``python -m unet_deploy``: the same as the console script."""

try:
    from unet_deploy.cli import main
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("unet_deploy."):
        raise
    raise SystemExit(
        f"error: {error.name} is not importable from here.\n"
        "  You are in a checkout that is not installed in editable mode.\n"
        "  fix: pip install -e .   (or leave this folder to use the installed wheel)"
    ) from None

if __name__ == "__main__":
    raise SystemExit(main())
