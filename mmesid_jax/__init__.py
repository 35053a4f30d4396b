"""MME-SID on JAX: multimodal semantic IDs and a Llama that recommends with them.

Source: "Empowering Large Language Model for Sequential Recommendation via Multimodal Embeddings and
Semantic IDs", arXiv 2509.02017 (CIKM 2025).
"""

__version__ = "0.1.0"
