export { createEndpointRuntime } from './endpoint.ts';
export { createRuntime } from './runtime.ts';
export { createMachineRuntime } from './ssh/machine-runtime.ts';
