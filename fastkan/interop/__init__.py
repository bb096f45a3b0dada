"""Exchange with other packages: conversion, replacement of linear layers, and pykan's names."""
