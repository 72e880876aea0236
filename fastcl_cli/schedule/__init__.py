"""The schedule language: from text to a configuration and a plan of whole numbers."""

from fastcl_cli.schedule.load import Loaded, Request, ScheduleError, check, compile_text, load

__all__ = ["Loaded", "Request", "ScheduleError", "check", "compile_text", "load"]
