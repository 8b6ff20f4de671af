#!/bin/sh
# Source CANN's set_env.sh, wherever this image has it, then run what was asked for.
for env in "${ASCEND_TOOLKIT_HOME:-/nowhere}/../set_env.sh" /usr/local/Ascend/ascend-toolkit/set_env.sh \
    /usr/local/Ascend/cann/set_env.sh; do
    if [ -f "$env" ]; then
        . "$env"
        break
    fi
done
# The driver is the host's, mounted when the container starts.
export LD_LIBRARY_PATH="/usr/local/Ascend/driver/lib64/driver:/usr/local/Ascend/driver/lib64/common${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$@"
