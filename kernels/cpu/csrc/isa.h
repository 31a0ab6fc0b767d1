// Which instruction set runs: the best of this machine, or less where a cap says so.
#pragma once

#include "rows.h"

namespace prosparse {

const RowKernels& row_kernels();

}  // namespace prosparse
