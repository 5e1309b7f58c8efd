# The app on port 7860, as a Docker Space or anywhere else. For a machine with an NVIDIA GPU, build with
#   docker build --build-arg TORCH_INDEX= .
FROM python:3.12-slim

# PyTorch's own index of CPU builds; empty = the default build, with CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN useradd --create-home --uid 1000 user && install --directory --owner=user /app
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}

COPY --chown=user . .
USER user
ENV GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860
EXPOSE 7860
CMD ["python", "app.py"]
