// Cooperative matrices of f16 that are summed in f32, of the size that the device offers.

//#if SIZE_16
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sums = coop_mat16x16<f32, C>;
const SIZE: u32 = 16u;
//#else
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sums = coop_mat8x8<f32, C>;
const SIZE: u32 = 8u;
//#endif

const SUBGROUPS: u32 = 4u;
const THREADS: u32 = SUBGROUPS * SUBGROUP_SIZE;
