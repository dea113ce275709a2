// SPDX-License-Identifier: Apache-2.0

// node work.mjs: computes and draws with WebGPU, and prints sums of what comes
// out.

import { createHash } from 'node:crypto'
import { create, globals } from 'webgpu'

Object.assign(globalThis, globals)
const gpu = create(['backend=vulkan'])
const adapter = await gpu.requestAdapter()
if (!adapter) throw new Error('no adapter')
const device = await adapter.requestDevice({ requiredFeatures: [...adapter.features] })
device.lost.then(info => info.reason === 'destroyed' || console.log('lost:', info.message))
const errors = []
device.addEventListener('uncapturederror', event => errors.push(event.error.message))

console.log('features', [...adapter.features].sort().join(' '))
for (const name of ['maxBufferSize', 'maxComputeInvocationsPerWorkgroup', 'maxTextureDimension2D', 'maxBindGroups'])
  console.log(name, adapter.limits[name])

// bytes reads a buffer back.
async function bytes(from, size = from.size) {
  const buffer = device.createBuffer({ size, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ })
  const encoder = device.createCommandEncoder()
  encoder.copyBufferToBuffer(from, 0, buffer, 0, size)
  device.queue.submit([encoder.finish()])
  await buffer.mapAsync(GPUMapMode.READ)
  const copy = new Uint8Array(buffer.getMappedRange().slice(0))
  buffer.unmap()
  return copy
}

// pixels reads a texture of four-byte pixels back.
async function pixels(texture) {
  const row = Math.ceil(texture.width * 4 / 256) * 256
  const buffer = device.createBuffer({ size: row * texture.height, usage: GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST })
  const encoder = device.createCommandEncoder()
  encoder.copyTextureToBuffer({ texture }, { buffer, bytesPerRow: row }, [texture.width, texture.height])
  device.queue.submit([encoder.finish()])
  return bytes(buffer)
}

const sum = data => createHash('sha256').update(data).digest('hex')

function compute(code, entries, groups) {
  const pipeline = device.createComputePipeline({ layout: 'auto', compute: { module: device.createShaderModule({ code }), entryPoint: 'main' } })
  const bindings = device.createBindGroup({
    layout: pipeline.getBindGroupLayout(0),
    entries: entries.map((resource, binding) => ({ binding, resource })),
  })
  const encoder = device.createCommandEncoder()
  const pass = encoder.beginComputePass()
  pass.setPipeline(pipeline)
  pass.setBindGroup(0, bindings)
  pass.dispatchWorkgroups(...groups)
  pass.end()
  device.queue.submit([encoder.finish()])
}

const storage = size => device.createBuffer({
  size, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST | GPUBufferUsage.INDIRECT,
})

async function arithmetic() {
  const buffer = storage(1 << 20)
  device.queue.writeBuffer(buffer, 0, Uint32Array.from({ length: buffer.size / 4 }, (_, i) => i * 2654435761))
  for (let round = 0; round < 5; round++)
    compute(`@group(0) @binding(0) var<storage, read_write> words: array<u32>;
      @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
        let i = id.x + id.y * 4096u;
        words[i] = (words[i] ^ (words[i] >> 15u)) * 2246822519u + i;
      }`, [{ buffer }], [64, 64])
  return bytes(buffer)
}

async function histogram() {
  const buffer = storage(256 * 4)
  compute(`@group(0) @binding(0) var<storage, read_write> bins: array<atomic<u32>, 256>;
    var<workgroup> local: array<atomic<u32>, 256>;
    @compute @workgroup_size(256) fn main(@builtin(local_invocation_index) l: u32, @builtin(workgroup_id) g: vec3u) {
      for (var i = 0u; i < 64u; i++) {
        atomicAdd(&local[(((l + 31u * i) * 40503u + g.x * 977u) >> 3u) & 255u], 1u);
      }
      workgroupBarrier();
      atomicAdd(&bins[l], atomicLoad(&local[l]));
    }`, [{ buffer }], [100])
  return bytes(buffer)
}

async function storageTexture() {
  const texture = device.createTexture({
    size: [200, 100], format: 'rgba8unorm',
    usage: GPUTextureUsage.STORAGE_BINDING | GPUTextureUsage.COPY_SRC,
  })
  compute(`@group(0) @binding(0) var image: texture_storage_2d<rgba8unorm, write>;
    @compute @workgroup_size(8, 4) fn main(@builtin(global_invocation_id) id: vec3u) {
      textureStore(image, id.xy, vec4f(f32(id.x) / 255, f32(id.y) / 255, f32((id.x ^ id.y) & 255u) / 255, 1));
    }`, [texture.createView()], [25, 25])
  return pixels(texture)
}

const scene = `
  struct V { @builtin(position) at: vec4f, @location(0) color: vec4f }
  @group(0) @binding(0) var<uniform> turn: vec4f;
  @vertex fn vertex(@location(0) at: vec3f, @builtin(instance_index) i: u32) -> V {
    let c = cos(turn.x * f32(i)); let s = sin(turn.x * f32(i));
    return V(vec4f(at.x * c - at.y * s, at.x * s + at.y * c, at.z + 0.1 * f32(i), 1), vec4f(at.xy + 0.5, 0.25 * f32(i), 0.5));
  }
  @fragment fn fragment(v: V) -> @location(0) vec4f { return v.color; }`

async function drawing() {
  const size = [300, 200], sampleCount = 4
  const module = device.createShaderModule({ code: scene })
  const pipeline = device.createRenderPipeline({
    layout: 'auto',
    vertex: { module, buffers: [{ arrayStride: 12, attributes: [{ shaderLocation: 0, offset: 0, format: 'float32x3' }] }] },
    fragment: {
      module, targets: [{
        format: 'rgba8unorm',
        blend: { color: { srcFactor: 'src-alpha', dstFactor: 'one-minus-src-alpha' }, alpha: { dstFactor: 'one' } },
      }],
    },
    primitive: { cullMode: 'none' },
    depthStencil: { format: 'depth24plus-stencil8', depthWriteEnabled: true, depthCompare: 'less-equal' },
    multisample: { count: sampleCount },
  })
  const target = (format, count, usage = 0) => device.createTexture({
    size, format, sampleCount: count, usage: GPUTextureUsage.RENDER_ATTACHMENT | usage,
  })
  const color = target('rgba8unorm', sampleCount), depth = target('depth24plus-stencil8', sampleCount)
  const resolved = target('rgba8unorm', 1, GPUTextureUsage.COPY_SRC)
  const corners = device.createBuffer({ size: 36, usage: GPUBufferUsage.VERTEX, mappedAtCreation: true })
  new Float32Array(corners.getMappedRange()).set([-0.9, -0.5, 0.2, 0.8, -0.4, 0.3, 0.1, 0.9, 0.4])
  corners.unmap()
  const indices = device.createBuffer({ size: 8, usage: GPUBufferUsage.INDEX, mappedAtCreation: true })
  new Uint16Array(indices.getMappedRange()).set([2, 0, 1, 0])
  indices.unmap()
  const turn = device.createBuffer({ size: 16, usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST })
  device.queue.writeBuffer(turn, 0, new Float32Array([0.5, 0, 0, 0]))
  const bindings = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries: [{ binding: 0, resource: { buffer: turn } }] })
  const indirect = storage(20)
  device.queue.writeBuffer(indirect, 0, new Uint32Array([3, 2, 0, 0, 0]))
  const bundler = device.createRenderBundleEncoder({ colorFormats: ['rgba8unorm'], depthStencilFormat: 'depth24plus-stencil8', sampleCount })
  bundler.setPipeline(pipeline)
  bundler.setBindGroup(0, bindings)
  bundler.setVertexBuffer(0, corners)
  bundler.setIndexBuffer(indices, 'uint16')
  bundler.drawIndexed(3, 5)
  const bundle = bundler.finish()

  const occlusion = device.createQuerySet({ type: 'occlusion', count: 2 })
  const counts = device.createBuffer({ size: 16, usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC })
  const encoder = device.createCommandEncoder()
  const pass = encoder.beginRenderPass({
    colorAttachments: [{ view: color.createView(), resolveTarget: resolved.createView(), loadOp: 'clear', storeOp: 'store', clearValue: [0.1, 0.2, 0.3, 1] }],
    depthStencilAttachment: {
      view: depth.createView(), depthLoadOp: 'clear', depthStoreOp: 'discard', depthClearValue: 1,
      stencilLoadOp: 'clear', stencilStoreOp: 'discard',
    },
    occlusionQuerySet: occlusion,
  })
  pass.executeBundles([bundle])
  pass.setPipeline(pipeline)
  pass.setBindGroup(0, bindings)
  pass.setVertexBuffer(0, corners)
  pass.setIndexBuffer(indices, 'uint16')
  pass.setScissorRect(20, 20, 200, 150)
  pass.beginOcclusionQuery(0)
  pass.drawIndexedIndirect(indirect, 0)
  pass.endOcclusionQuery()
  pass.end()
  encoder.resolveQuerySet(occlusion, 0, 1, counts, 0)
  device.queue.submit([encoder.finish()])
  console.log('seen', new BigUint64Array((await bytes(counts)).buffer)[0] > 0n)
  return pixels(resolved)
}

async function sampling() {
  const texture = device.createTexture({
    size: [64, 64], format: 'rgba8unorm', mipLevelCount: 3,
    usage: GPUTextureUsage.TEXTURE_BINDING | GPUTextureUsage.COPY_DST,
  })
  for (let level = 0; level < 3; level++) {
    const width = 64 >> level
    device.queue.writeTexture({ texture, mipLevel: level }, Uint8Array.from({ length: 4 * width * width }, (_, i) => i * (level + 3)),
      { bytesPerRow: 4 * width }, [width, width])
  }
  const buffer = storage(1 << 16)
  compute(`@group(0) @binding(0) var image: texture_2d<f32>;
    @group(0) @binding(1) var how: sampler;
    @group(0) @binding(2) var<storage, read_write> out: array<vec4f>;
    @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
      let at = vec2f(f32(id.x & 63u), f32(id.x >> 6u)) / 40.0;
      out[id.x] = textureSampleLevel(image, how, at, f32(id.x % 5u) / 2.0);
    }`, [
    texture.createView(),
    device.createSampler({ minFilter: 'linear', magFilter: 'linear', mipmapFilter: 'linear', addressModeU: 'repeat', addressModeV: 'mirror-repeat' }),
    { buffer },
  ], [64])
  return bytes(buffer)
}

async function mapped() {
  const upload = device.createBuffer({ size: 1 << 20, usage: GPUBufferUsage.MAP_WRITE | GPUBufferUsage.COPY_SRC })
  const buffer = storage(1 << 20)
  for (let round = 0; round < 4; round++) {
    await upload.mapAsync(GPUMapMode.WRITE)
    new Uint32Array(upload.getMappedRange()).fill(round + 7, round * 1000, round * 5000 + 10)
    upload.unmap()
    const encoder = device.createCommandEncoder()
    encoder.copyBufferToBuffer(upload, 0, buffer, 0, upload.size)
    device.queue.submit([encoder.finish()])
  }
  return bytes(buffer)
}

for (const work of [arithmetic, histogram, storageTexture, drawing, sampling, mapped])
  console.log(work.name, sum(await work()))
device.pushErrorScope('validation')
device.createBuffer({ size: 4, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.STORAGE })
console.log('refused', (await device.popErrorScope()) !== null)
console.log('errors', errors.length, ...errors)
device.destroy()
process.exit(errors.length === 0 ? 0 : 1)
