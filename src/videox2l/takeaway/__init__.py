"""What is taken away from answers: clips of their moments, lists of them for editors, and pages to read."""

from videox2l.takeaway.clips import find_video, find_videos, fitting_videos, save_clips
from videox2l.takeaway.moments import check_moments, moments_text, write_moments
from videox2l.takeaway.report import check_report, report_page, write_report

__all__ = [
    "check_moments",
    "check_report",
    "find_video",
    "find_videos",
    "fitting_videos",
    "moments_text",
    "report_page",
    "save_clips",
    "write_moments",
    "write_report",
]
