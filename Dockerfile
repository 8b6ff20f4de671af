# anymix on an Ascend host; the container gets the cards it needs and nothing else. Build where there is a network:
#
#   make wheelhouse ARCH=aarch64 PY=3.11 TORCH=2.7.1 EXTRAS=npu ALSO=torch-npu==2.7.1.post2
#   docker build --build-arg BASE=<an image with CANN and Python 3.11> --build-arg WHEELS=<folder in dist> -t anymix .
#
# docs/ascend.md has the line that starts it and the way into a network without internet (docker save, docker load).

# CANN, its kernels for the chip and Python, as your IT or Huawei provides it; no image is named here on purpose
ARG BASE
FROM ${BASE}
ARG WHEELS

COPY dist/${WHEELS} /wheels
COPY recipes /opt/anymix/recipes
COPY LICENSE README.md README.zh.md /opt/anymix/

RUN cd /wheels && sha256sum -c SHA256SUMS --quiet \
    && python3 keep_torch.py > /tmp/keep.txt \
    && python3 -m pip install --no-cache-dir --no-index --find-links /wheels -c /tmp/keep.txt 'anymix[npu]' \
    && if ls /wheels/torch_npu-*.whl > /dev/null 2>&1; then \
           python3 -m pip install --no-cache-dir --no-index --no-deps /wheels/torch_npu-*.whl; fi \
    && rm -rf /wheels /tmp/keep.txt

# Models and runs come from the host; models are only read.
ENV ANYMIX_MODELS=/models
WORKDIR /mine

# What set_env.sh exports holds for every command, also where it lies under CANN's newer name.
COPY docker/start.sh /usr/local/bin/start-anymix
RUN chmod 755 /usr/local/bin/start-anymix
ENTRYPOINT ["start-anymix"]
CMD ["anymix", "doctor"]
