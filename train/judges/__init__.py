"""Language models as judges: one small client for any OpenAI-compatible endpoint, AlpacaEval and MT-Bench."""
