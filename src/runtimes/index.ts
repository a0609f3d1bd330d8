export { createEndpointRuntime } from './endpoint.ts';
