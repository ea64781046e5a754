//! The bytes of a cache file: the driver's data after a header that identifies the driver and allows checking
//! integrity.
//!
//! `magic | SHA-256 of the adapter's identity | length of the data | SHA-256 of all of that and of the data | data`

use hmac_sha256::Hash;

/// The format and its version.
const MAGIC: &[u8; 16] = b"qwen-pipelines 1";
/// Bytes before the data.
pub(super) const HEADER: usize = MAGIC.len() + 32 + 8 + 32;

/// A digest of an adapter and its driver.
pub(super) type Identity = [u8; 32];

/// The identity of the adapter and the driver that `info` describes.
pub(super) fn identity(info: &wgpu::AdapterInfo) -> Identity {
    let mut hash = Hash::new();
    let (vendor, device) = (info.vendor.to_le_bytes(), info.device.to_le_bytes());
    let kind = format!("{:?} {:?}", info.backend, info.device_type);
    let fields: [&[u8]; 6] =
        [&vendor, &device, kind.as_bytes(), info.name.as_bytes(), info.driver.as_bytes(), info.driver_info.as_bytes()];
    for field in fields {
        // Each field with its length, so that different lists of fields never give the same bytes.
        hash.update((field.len() as u64).to_le_bytes());
        hash.update(field);
    }
    hash.finalize()
}

fn checksum(before: &[u8], data: &[u8]) -> [u8; 32] {
    let mut hash = Hash::new();
    hash.update(before);
    hash.update(data);
    hash.finalize()
}

/// The file for `data`, which came from the driver of `identity`.
pub(super) fn encode(identity: &Identity, data: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(HEADER + data.len());
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(identity);
    file.extend_from_slice(&(data.len() as u64).to_le_bytes());
    let checksum = checksum(&file, data);
    file.extend_from_slice(&checksum);
    file.extend_from_slice(data);
    file
}

/// The data of `file`, or why it was not written by [`encode`] for `identity`.
pub(super) fn decode<'a>(identity: &Identity, file: &'a [u8]) -> Result<&'a [u8], String> {
    if file.len() < HEADER {
        return Err(format!("it has {} bytes, its header alone has {HEADER}", file.len()));
    }
    let (before, rest) = file.split_at(HEADER - 32);
    let (expected, data) = rest.split_at(32);
    let (magic, rest) = before.split_at(MAGIC.len());
    let (owner, length) = rest.split_at(32);
    if magic != MAGIC {
        return Err("it was not written by this version of the program".into());
    }
    if owner != identity {
        return Err("it belongs to another adapter or driver".into());
    }
    if length != (data.len() as u64).to_le_bytes() {
        return Err(format!("it has {} bytes of data, its header states another number", data.len()));
    }
    match checksum(before, data) == *expected {
        true => Ok(data),
        false => Err("its checksum does not match: it is damaged".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_survives_and_every_damage_is_found() {
        let (mine, other) = ([1; 32], [2; 32]);
        for data in [&[][..], &[7], &[0xa5; 300]] {
            let file = encode(&mine, data);
            assert_eq!(decode(&mine, &file), Ok(data));
            assert!(decode(&other, &file).unwrap_err().contains("another adapter"));
            for cut in 0..file.len() {
                assert!(decode(&mine, &file[..cut]).is_err(), "cut to {cut} of {} bytes", file.len());
            }
            assert!(decode(&mine, &[&file[..], &[0]].concat()).is_err());
            for at in 0..file.len() {
                for bit in 0..8 {
                    let mut damaged = file.clone();
                    damaged[at] ^= 1 << bit;
                    assert!(decode(&mine, &damaged).is_err(), "bit {bit} of byte {at}");
                }
            }
        }
        assert!(decode(&mine, &[0; 400]).unwrap_err().contains("version"));
    }

    #[test]
    fn each_field_of_an_adapter_counts() {
        let base = || {
            let mut info = wgpu::AdapterInfo::new(wgpu::DeviceType::DiscreteGpu, wgpu::Backend::Vulkan);
            (info.vendor, info.device, info.name) = (4098, 29772, "Radeon".into());
            (info.driver, info.driver_info) = ("radv".into(), "Mesa 22.3.6".into());
            info
        };
        let changes: [fn(&mut wgpu::AdapterInfo); 7] = [
            |_| {},
            |info| info.vendor += 1,
            |info| info.device += 1,
            |info| info.name.push('X'),
            |info| info.driver_info = "Mesa 26.1.6".into(),
            |info| info.device_type = wgpu::DeviceType::Cpu,
            // The same characters, divided otherwise.
            |info| (info.driver, info.driver_info) = ("radvM".into(), "esa 22.3.6".into()),
        ];
        let identities = changes.map(|change| {
            let mut info = base();
            change(&mut info);
            identity(&info)
        });
        for (i, one) in identities.iter().enumerate() {
            assert!(identities[i + 1..].iter().all(|another| another != one), "change {i}");
        }
        assert_eq!(identity(&base()), identities[0]);
    }
}
