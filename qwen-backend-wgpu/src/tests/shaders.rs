//! Every module that the backend can request: valid within the smallest limits, translated to each driver's language,
//! and free of what those languages do not guarantee.

use std::collections::HashSet;
use std::sync::OnceLock;

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Block, Expression, Function, Handle, Module, Statement, TypeInner};

use qwen_core::Encoding;
use qwen_core::backend::planes;

use crate::adapter::Cooperative;
use crate::kv::KvTypes;
use crate::ops::attention::{merge_shader, shader as attention_shader};
use crate::ops::product::{ProductKernel, ProductShader, cooperative_shader};
use crate::shader::Shader;

/// Every module that the backend can request, except those with cooperative matrices.
pub(crate) fn variants() -> Vec<Shader> {
    let mut all: Vec<Shader> =
        ["add", "add_rows", "argmax", "copy_blocks", "gather_rows", "rms_norm", "rope", "silu_and_mul"]
            .into_iter()
            .map(Shader::new)
            .collect();
    all.extend(["ceiling_copy", "ceiling_multiply", "ceiling_read"].map(Shader::new));
    let encodings = [Encoding::Bf16, Encoding::F16, Encoding::F32].into_iter().chain(planes::encodings());
    all.extend(encodings.clone().map(|encoding| Shader::new("embed").encoding(encoding)));
    let groups = encodings.filter(|encoding| matches!(encoding, Encoding::Group(_)));
    all.extend(groups.map(|encoding| Shader::new("embed").encoding(encoding).flag("ORDERED")));
    // Heads are multiples of eight channels up to 256.
    let half_dims = || (4..=128).step_by(4);
    all.extend(half_dims().map(merge_shader));
    all.push(Shader::new("store_kv_q8"));
    for types in KvTypes::PAIRS.into_iter().chain(KvTypes::BLOCKS) {
        all.push(types.flags(Shader::new("store_kv")));
        // Those in blocks are multiples of 32.
        let half_dims = half_dims().filter(|half_dim| !types.has_blocks() || half_dim % 16 == 0);
        for half_dim in half_dims {
            all.extend([true, false].map(|split| attention_shader(split, types, half_dim)));
        }
    }
    let few = [1, 4].into_iter().flat_map(|tokens| [(tokens, 8), (tokens, 32)]);
    let few =
        few.flat_map(|(tokens, lanes)| [false, true].map(|signed| ProductKernel::Matvec { tokens, lanes, signed }));
    let kernels: Vec<ProductKernel> = few.chain([ProductKernel::Tiled]).collect();
    all.push(Shader::new("signed_rows"));
    all.push(Shader::new("signed_rows").flag("ORDERED").constant("ORDER_BINDING", 3));
    all.push(Shader::new("signed_rows").flag("NORM").constant("NORM_BINDING", 3));
    all.extend(ProductShader::all(&kernels).into_iter().map(ProductShader::shader));
    all
}

/// The other modules of `Best`, for subgroups of the sizes of llvmpipe, NVIDIA and AMD.
pub(crate) fn cooperative_variants() -> Vec<Shader> {
    let offered = [(8, 8), (8, 32), (16, 32), (16, 64)].map(|(size, subgroup)| Cooperative { size, subgroup });
    let products = ProductShader::all(&offered.map(ProductKernel::Cooperative));
    let mut all: Vec<Shader> = products.into_iter().map(ProductShader::shader).collect();
    all.extend(offered.map(|cooperative| cooperative_shader("ceiling_cooperative", cooperative)));
    all.extend([true, false].map(|ragged| Shader::new("f16_rows").flag_if(ragged, "RAGGED")));
    all.push(Shader::new("f16_rows").flag("ORDERED").constant("ORDER_BINDING", 4));
    all
}

/// Called for each shader that a test of this crate requests.
pub(crate) fn assert_is_a_variant(shader: &Shader) {
    static ALL: OnceLock<HashSet<Shader>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let with_f16 = Shader::new("ceiling_multiply").flag("F16");
        variants().into_iter().chain(cooperative_variants()).chain([with_f16]).collect()
    });
    assert!(all.contains(shader), "{shader:?} is not among the variants that are checked");
}

/// What devices with cooperative matrices offer.
fn cooperative_capabilities() -> Capabilities {
    Capabilities::SHADER_FLOAT16
        | Capabilities::SHADER_FLOAT16_IN_FLOAT32
        | Capabilities::SUBGROUP
        | Capabilities::COOPERATIVE_MATRIX
}

/// Parse and validate, within the limits that the kernels are written for.
fn validated(shader: &Shader, capabilities: Capabilities) -> (Module, ModuleInfo) {
    let text = shader.compose();
    let module = naga::front::wgsl::parse_str(&text)
        .unwrap_or_else(|error| panic!("{shader:?}: {}", error.emit_to_string(&text)));
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .unwrap_or_else(|error| panic!("{shader:?}: {}", error.emit_to_string(&text)));
    let of_space = |space: fn(&AddressSpace) -> bool| {
        module.global_variables.iter().filter(move |(_, variable)| space(&variable.space))
    };
    let bound = of_space(|space| matches!(space, AddressSpace::Storage { .. })).count();
    // Kernels with more are used only if a device can bind them.
    let wide = ["NORM", "COOPERATIVE"].iter().any(|flag| shader.flags.contains(flag));
    let most = if wide && shader.flags.contains(&"EPILOGUE_HEADS") { 9 } else { 8 };
    assert!(bound <= most, "{shader:?} binds {bound} arrays");
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).unwrap();
    let shared: u32 = of_space(|space| *space == AddressSpace::WorkGroup).map(|(_, v)| layouter[v.ty].size).sum();
    assert!(shared <= 16 << 10, "{shader:?} takes {shared} bytes of workgroup memory");
    let size = module.entry_points[0].workgroup_size;
    assert!(size.iter().product::<u32>() <= 256, "{shader:?}: {size:?} threads");
    (module, info)
}

fn translate_to_spirv_and_msl(module: &Module, info: &ModuleInfo, spirv: (u8, u8)) {
    let spv = naga::back::spv::Options { lang_version: spirv, ..Default::default() };
    naga::back::spv::write_vec(module, info, &spv, None).unwrap();
    let msl = naga::back::msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    naga::back::msl::write_string(module, info, &msl, &Default::default()).unwrap();
}

/// How often a single component of a vector that threads share is written. In WGSL, as in Metal and HLSL, such a write
/// may write the whole vector, so two threads that write different components race.
fn component_stores(module: &Module, info: &ModuleInfo) -> usize {
    let functions = module.functions.iter().map(|(handle, function)| (function, &info[handle]));
    let entries = module.entry_points.iter().enumerate().map(|(i, entry)| (&entry.function, info.get_entry_point(i)));
    let is_component = |function: &Function, info: &naga::valid::FunctionInfo, pointer: Handle<Expression>| {
        let (Expression::Access { base, .. } | Expression::AccessIndex { base, .. }) = function.expressions[pointer]
        else {
            return false;
        };
        let (vector, space) = match *info[base].ty.inner_with(&module.types) {
            TypeInner::Pointer { base, space } => (matches!(module.types[base].inner, TypeInner::Vector { .. }), space),
            TypeInner::ValuePointer { size, space, .. } => (size.is_some(), space),
            _ => return false,
        };
        vector && matches!(space, AddressSpace::WorkGroup | AddressSpace::Storage { .. })
    };
    let count = |(function, info): (&Function, _)| {
        let mut pointers = Vec::new();
        stores(&function.body, &mut pointers);
        pointers.into_iter().filter(|pointer| is_component(function, info, *pointer)).count()
    };
    functions.chain(entries).map(count).sum()
}

/// The pointers that `block` stores through.
fn stores(block: &Block, pointers: &mut Vec<Handle<Expression>>) {
    for statement in block {
        match statement {
            Statement::Store { pointer, .. } => pointers.push(*pointer),
            Statement::Block(block) => stores(block, pointers),
            Statement::If { accept, reject, .. } => [accept, reject].into_iter().for_each(|b| stores(b, pointers)),
            Statement::Switch { cases, .. } => cases.iter().for_each(|case| stores(&case.body, pointers)),
            Statement::Loop { body, continuing, .. } => {
                [body, continuing].into_iter().for_each(|b| stores(b, pointers));
            }
            _ => {}
        }
    }
}

#[test]
fn every_variant_is_valid_within_the_smallest_limits_and_translates() {
    for shader in variants() {
        // Only what WebGPU always has: no f16 type, no subgroups, no immediates.
        let (module, info) = validated(&shader, Capabilities::SHADER_FLOAT16_IN_FLOAT32);
        translate_to_spirv_and_msl(&module, &info, (1, 0));
        let hlsl = naga::back::hlsl::Options { fake_missing_bindings: true, ..Default::default() };
        let mut translated = String::new();
        naga::back::hlsl::Writer::new(&mut translated, &hlsl, &Default::default())
            .write(&module, &info, None)
            .unwrap_or_else(|error| panic!("{shader:?}: {error}"));
    }
}

/// Not to HLSL, which has no cooperative matrices: wgpu does not offer them on DX12.
#[test]
fn cooperative_variants_are_valid_and_translate_to_what_offers_them() {
    for shader in cooperative_variants() {
        let (module, info) = validated(&shader, cooperative_capabilities());
        translate_to_spirv_and_msl(&module, &info, (1, 6));
    }
}

#[test]
fn no_thread_writes_a_component_of_a_vector_that_others_share() {
    for shader in variants().into_iter().chain(cooperative_variants()) {
        let (module, info) = validated(&shader, cooperative_capabilities());
        assert_eq!(component_stores(&module, &info), 0, "{shader:?}");
    }
}

#[test]
fn stores_of_components_are_found() {
    let text = "
        @group(0) @binding(0) var<storage, read_write> out: array<vec4<f32>>;
        var<workgroup> both: array<vec2<u32>, 8>;
        fn helper(i: u32) { both[i].x = i; }
        @compute @workgroup_size(8)
        fn main(@builtin(local_invocation_index) i: u32) {
            var own = vec4(0.0);
            own[i % 4u] = 1.0;
            if i > 2u { out[0][i % 4u] = 2.0; }
            for (var j = 0u; j < 2u; j++) { out[j].y = 3.0; }
            both[i] = vec2(i);
            out[i] = own;
            helper(i);
        }";
    let module = naga::front::wgsl::parse_str(text).unwrap();
    let info = Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module).unwrap();
    assert_eq!(component_stores(&module, &info), 3);
}

#[test]
fn the_one_kernel_with_f16_is_valid_where_that_is_offered() {
    let text = Shader::new("ceiling_multiply").flag("F16").compose();
    let module = naga::front::wgsl::parse_str(&text).unwrap();
    assert!(Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16).validate(&module).is_ok());
    assert!(Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module).is_err());
}

#[test]
fn directives_keep_and_drop_lines() {
    let kept = Shader::new("kv_write").flag("KEY_F16").compose();
    assert!(kept.contains("alias KeyPair = u32") && kept.contains("alias ValuePair = vec2<f32>"));
    assert!(!kept.contains("//#") && !kept.contains("alias KeyPair = vec2<f32>"));
    assert!(Shader::new("kv_write").compose().contains("alias KeyPair = vec2<f32>"));
}
