"""Looking at models: how well a mode and a weight format predict a text."""

from .compare import Interval
from .perplexity import Perplexity, perplexity

__all__ = ["Interval", "Perplexity", "perplexity"]
