"""Models: what a student or a teacher must offer, and families that do."""

from jopd.models.api import KVCache, Model, Params
from jopd.models.decoder import DecoderConfig, make_model

__all__ = ['DecoderConfig', 'KVCache', 'Model', 'Params', 'make_model']
