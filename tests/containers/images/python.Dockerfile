# Stands in for the official image of Python 3.11: Debian's.
FROM automl-stand-in/debian:bookworm
COPY pip.conf /etc/pip.conf
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv python3-pip \
    && rm -rf /var/lib/apt/lists/* && ln -s python3 /usr/bin/python
ENV LANG=C.UTF-8
LABEL automl.stand-in=true
CMD ["python3"]
