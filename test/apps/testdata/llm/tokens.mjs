// SPDX-License-Identifier: Apache-2.0
//
// node tokens.mjs MODEL COUNT: prints the tokens that llama.cpp finds likeliest,
// one after the other, computed by its Vulkan backend.
import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const [model, count] = [process.argv[2], Number(process.argv[3])];
const llama = await getLlama({
  gpu: "vulkan", build: "never", skipDownload: true, logLevel: LlamaLogLevel.warn, vramPadding: 0,
});
if (llama.gpu !== "vulkan") throw new Error(`computed by ${llama.gpu}`);
const loaded = await llama.loadModel({ modelPath: model, gpuLayers: "max", ignoreMemorySafetyChecks: true });
const context = await loaded.createContext({
  contextSize: 256, batchSize: 64, sequences: 1, flashAttention: false, ignoreMemorySafetyChecks: true,
});
const prompt = [1, ...Array.from({ length: 40 }, (_, i) => 260 + (i * 11) % 26)];
const tokens = [];
for await (const token of context.getSequence().evaluate(prompt, { temperature: 0, topK: 1 })) {
  tokens.push(token);
  if (tokens.length === count) break;
}
console.log(tokens.join(" "));
await context.dispose();
await loaded.dispose();
await llama.dispose();
process.exit(0); // its threads would keep the process
