"""The interface of a model, and the families that implement it."""

from jopd.models.api import KVCache, Model, Params
from jopd.models.decoder import DecoderConfig, make_model

__all__ = ['DecoderConfig', 'KVCache', 'Model', 'Params', 'make_model']
