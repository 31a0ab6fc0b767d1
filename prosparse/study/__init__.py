"""Looking at models: what their neurons do, and how well a mode and a weight format predict a text."""

from .compare import Interval
from .measure import Report, measure, merge
from .perplexity import Perplexity, perplexity
from .windows import CALIBRATION, HELD_OUT

__all__ = ["CALIBRATION", "HELD_OUT", "Interval", "Perplexity", "Report", "measure", "merge", "perplexity"]
